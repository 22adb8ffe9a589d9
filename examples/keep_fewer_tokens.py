"""Shows how many tokens of a text go on from each layer, at every operating point of a bundle that drops tokens.

python examples/keep_fewer_tokens.py BUNDLE TEXT
"""

import sys

from edgebert import EdgeModel

bundle, text = sys.argv[1:3]
with EdgeModel.from_pretrained(bundle) as model:
    for name in model.manifest.operating_points:
        model.set_policy(name)
        (answer,) = model([text])
        tokens = ", ".join(map(str, answer.layer_tokens or ()))
        print(f"{name}: {answer.label}, tokens {tokens} of {answer.tokens}, {answer.cost_ratio:.2f} of the cost")
    model.set_policy("lengths", lengths="0.5,0.25")  # shares of the text; "64,32,16" would be tokens
    print(f"half, then a quarter: {model([text])[0].label}")
