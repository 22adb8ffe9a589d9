# make demo         set up and run the main job on an embedded default
# make test         set up and run lint, types, import contracts and tests
# make test-long    tests that take minutes more: rivals, more families and methods, longer parity
# make faults       every fault that tests/faults knows, as often as the README says: an hour
# make test-latest  the tests on the newest transformers, onnx and numpy
# make test-web     opens a report, and runs single files, in headless Chromium and Node: Debian's packages, which it
#                   installs where it may, and onnxruntime-web from npm
PYTHON ?= python3
# More arguments for every pip install, such as an index with CPU builds of torch.
PIP_ARGS ?=

PIP = -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: demo test test-long faults test-latest test-web lint clean

demo: .venv-demo/installed
	.venv-demo/bin/edgebert demo --output demo-run --force

test: .venv/installed lint
	.venv/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

test-long: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadfile -m long

faults: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadfile -m 'long or not long' tests/faults --full

test-latest: .venv-latest/installed
	.venv-latest/bin/python -m pytest -n 2 --dist loadfile

test-web: .venv/installed tests/web/node_modules/installed
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| { echo "make test-web: needs Chromium, such as Debian's package: apt-get install chromium" >&2; exit 1; }
	.venv/bin/python -m pytest tests/web

tests/web/node_modules/installed: tests/web/package-lock.json
	@command -v npm >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null; } \
		|| { echo "make test-web: needs Node, such as Debian's packages: apt-get install nodejs npm" >&2; exit 1; }
	cd tests/web && npm ci --no-audit --no-fund --ignore-scripts
	touch $@

# Everything together: torch, transformers, onnx, onnxruntime, optimum, openvino, neural-compressor, click.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -e '.[all,dev]'
	touch $@

# Without the two packages that hold the others back.
.venv-latest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python $(PIP) --upgrade -e '.[dev]'
	touch $@

.venv-demo/installed: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP) -e '.[demo]'
	touch $@

clean:
	rm -rf .venv .venv-latest .venv-demo demo-run build *.egg-info tests/web/node_modules
