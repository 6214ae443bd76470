"""Does the pair answer better than its models alone? The same questions and seeds for all, and how sure the figures are.

>>> from kad_llama.evaluation import evaluate, load_task
>>> task = load_task("gsm8k", data="gsm8k_test.jsonl")  # doctest: +SKIP
>>> results = evaluate("base.gguf", "aligned.gguf", task, rules=["dual"], n=100, directory="out")  # doctest: +SKIP
>>> results.accuracy("dual 0.4").value  # doctest: +SKIP
"""

from __future__ import annotations

from kad_llama.evaluation.answers import Answer, read_answers
from kad_llama.evaluation.report import write_report
from kad_llama.evaluation.results import ALIGNED_ALONE, BASE_ALONE, Results, Row, read_results
from kad_llama.evaluation.runner import Progress, evaluate, question_seed
from kad_llama.evaluation.settings import Setting, read_rule, settings_of
from kad_llama.evaluation.statistics import PairedTest, Share, Spread
from kad_llama.evaluation.tasks import BUILT_IN, Example, Mark, Question, Task, load_task

__all__ = [
    "ALIGNED_ALONE",
    "BASE_ALONE",
    "BUILT_IN",
    "Answer",
    "Example",
    "Mark",
    "PairedTest",
    "Progress",
    "Question",
    "Results",
    "Row",
    "Setting",
    "Share",
    "Spread",
    "Task",
    "evaluate",
    "load_task",
    "question_seed",
    "read_answers",
    "read_results",
    "read_rule",
    "settings_of",
    "write_report",
]
