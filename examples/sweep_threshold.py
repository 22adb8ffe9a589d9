"""Shows what each confidence threshold costs and gives on labelled texts.

python examples/sweep_threshold.py BUNDLE FILE
"""

import sys

from edgebert import evaluate_bundle

bundle, data = sys.argv[1:3]
print("threshold  accuracy  layers")
for threshold in (0.7, 0.8, 0.9, 0.95, 0.99):
    result = evaluate_bundle([bundle], [data], policies=["confidence"], settings={"threshold": threshold})
    row = result["rows"][0]
    print(f"{threshold:9.2f}  {row['metric']:8.4f}  {row['mean_layers']:6.2f}")
