"""Trains DACT-BERT on a folder with train.tsv, validation.tsv and test.tsv, and exports the bundle.

python examples/train_and_export.py DATA CHECKPOINT BUNDLE [section.key=value ...]
"""

import sys
from pathlib import Path

from edgebert import export_model, read_config, train_model
from edgebert.output import ConsoleReporter

data, checkpoint, bundle, *settings = sys.argv[1:]
path = Path(__file__).parent.parent / "export_configs" / "dact_bert_sst2.yaml"
config = read_config(path, (f"train.data={data}", *settings))
train_model(config, checkpoint, reporter=ConsoleReporter())
made = export_model(checkpoint, bundle, reporter=ConsoleReporter())
print(f"{made.path}: {made.size_bytes / 1e6:.1f} MB, verified on {made.manifest.parity.samples} inputs")
