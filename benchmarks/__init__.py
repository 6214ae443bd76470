"""Scripts that measure side by side and print a table; they keep nothing but the files they make."""
