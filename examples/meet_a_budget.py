"""Chooses a setting for each budget on one file of labelled texts, and measures them on another.

python examples/meet_a_budget.py BUNDLE TUNING_FILE OTHER_FILE OUTPUT
"""

import sys

from edgebert import evaluate_bundle, tune_bundle

bundle, tuning_file, other_file, output = sys.argv[1:5]
print("budget     accuracy there  accuracy here   FLOPs  speed-up")
for share in (0.8, 0.6):
    result = tune_bundle(bundle, tuning_file, budget=f"flops={share}", target=output, force=True)
    point = result["points"][0]
    row = evaluate_bundle([output], [other_file], policies=[point["name"]])["rows"][0]
    print(
        f"{point['budget']}  {point['metric']:14.4f}  {row['metric']:13.4f}  {row['flops_ratio']:6.3f}"
        f"  {point['speedup']:8.2f}"
    )
    bundle = output  # the next point is added to the same bundle
