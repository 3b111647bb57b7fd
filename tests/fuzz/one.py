"""Run one case again.

python tests/fuzz/one.py "Case(way='greedy', family='llava', method='fopru')" [--unpruned]
"""

import sys

from cases import Case, Row
from scene import Scene
from ways import WAYS

case = eval(sys.argv[1], {"Case": Case, "Row": Row})
WAYS[case.way].run(Scene(case, pruned="--unpruned" not in sys.argv))
print("right")
