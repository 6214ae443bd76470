"""The small fixtures and the script that makes them; see README.md beside this file."""
