"""CCBench: questions about Chinese culture, in MMBench's form (Liu et al. 2023, arXiv 2307.06281).

DATA_ROOT/mmbench/CCBench_legacy.tsv                 index, question, A-D, answer, category, image (base64)
"""

from eval.tasks.mmbench import CHINESE_SENTENCE, make_table_task
from eval.tasks.questions import collect_tasks

FAMILY = collect_tasks([make_table_task("ccbench/dev", "CCBench_legacy.tsv", CHINESE_SENTENCE)])
