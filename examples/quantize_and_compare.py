"""Quantizes a bundle in two ways and compares each with the bundle it was made of, text by text.

python examples/quantize_and_compare.py BUNDLE LABELLED_FILE CALIBRATION_FILE OUTPUT_FOLDER
"""

import sys
from pathlib import Path

from edgebert import evaluate_bundle, quantize_bundle

bundle, labelled, calibration, folder = sys.argv[1:5]
made = [
    quantize_bundle(bundle, Path(folder) / "dynamic", force=True),
    quantize_bundle(bundle, Path(folder) / "static", overrides={"mode": "static"}, calibration=calibration, force=True),
]
rows = evaluate_bundle([bundle, *(one.path for one in made)], [labelled], against=[bundle])["rows"]
print("bundle          MB  metric  points  same answers  other work")
for row in rows:
    print(
        f"{Path(row['bundle']).name:12} {row['size_mb']:5.1f}  {row['metric']:.4f}  "
        f"{100 * row['against']['difference']:+6.2f}  {row.get('fp32_agreement', 1.0):12.4f}  "
        f"{row.get('decision_flips', 0.0):10.4f}"
    )
