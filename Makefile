# make demo   photographs to an OOD table, and a folder of new ones judged, set-up included (needs apt-get)
# make demo-cifar   the same encoder on CIFAR10 and CIFAR100, anywhere (downloads 340 MB)
# make test   what a change needs, in some four minutes; make test-all   every test
#             (both set up what they need)
# make soak SECONDS=3600   a server under good, hostile and slow requests
# make faults   kills, full disks, signals, damaged files: everything that is tried, with counts
# make demo-studies   the seven studies on the demo, tables and figures in runs/studies
PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed
TESTABLE := .venv/.testable

STUDIES := main_table accuracy prompts shift confidence few_shot reproduce

.PHONY: demo demo-cifar test test-all faults soak browser lint docs bench bench-statistics demo-studies

# $(call timed,what,command) runs a command, and says how long it took.
timed = begun=$$(date +%s); $(2) || exit 1; echo "$(1): $$(($$(date +%s) - begun)) seconds"

demo: $(INSTALLED) data/demo_encoder/.made data/demo/.made data/wordnet/.made
	@$(call timed,Table and report,$(PY) train.py --config demo.yaml $(DEMO_FLAGS))
	$(PY) -m clip_ood demo mixed runs/demo data/demo/mixed
	$(PY) detect.py --run runs/demo data/demo/mixed --out runs/demo/mixed.csv --overwrite
	@echo "The run's report: runs/demo/report.html"

demo-cifar: $(INSTALLED) data/demo_encoder/.made
	$(PY) train.py --config demo_cifar.yaml $(DEMO_FLAGS)

test: $(TESTABLE) data/demo_encoder/.made
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow and not browser and not extras"

test-all: $(TESTABLE) data/demo_encoder/.made browser
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# `make faults FAULTS="kills signals"` tries some kinds alone.
faults: $(TESTABLE)
	PYTHONPATH=.:tests $(PY) -m faults $(FAULTS)

SECONDS ?= 60
soak: $(TESTABLE)
	PYTHONPATH=.:tests $(PY) -m soak $(SECONDS)

# Opens reports in tests, which are skipped where it cannot be had.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
	  echo "There is no chromium here: the tests that open reports are skipped (apt-get install chromium)."

lint: $(TESTABLE)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Pages in build/docs; a broken link is an error.
docs: $(INSTALLED)
	$(PY) -m pip install --quiet $(PIP_FLAGS) -e '.[docs]'
	$(PY) -m sphinx -W --keep-going -q docs build/docs

# `make bench-statistics` prints what intervals cover and tests claim in simulations, in ten minutes.
# `make bench BENCH_FLAGS=--tiny` goes through every part in some three minutes and measures nothing.
bench-statistics: $(INSTALLED)
	$(PY) -m bench.statistics

bench: $(INSTALLED)
	$(PY) -m pip install --quiet $(PIP_FLAGS) -e '.[bench]'
	$(PY) -m bench $(BENCH_FLAGS)

# Ranges are open; `make … PIP_FLAGS="-c requirements.lock"` installs the versions that were tested (Python 3.11).
$(INSTALLED): pyproject.toml
	@$(call timed,Installation,$(PYTHON) -m venv .venv && $(PY) -m pip install --quiet $(PIP_FLAGS) -e '.[demo]')
	touch $@

$(TESTABLE): $(INSTALLED)
	$(PY) -m pip install --quiet $(PIP_FLAGS) -e '.[demo,test]'
	touch $@

data/demo_encoder/.made: $(INSTALLED) demo/encoder.py demo/projection.py
	@$(call timed,The demo's encoder,$(PY) -m clip_ood demo encoder data/demo_encoder)
	touch $@

demo-studies: $(INSTALLED) data/demo/.made data/demo_encoder/.made data/wordnet/.made
	$(PY) -m pip install --quiet $(PIP_FLAGS) -e '.[studies]'
	$(PY) -m clip_ood demo encoder --trunk lite1
	$(PY) -m clip_ood demo encoder --trunk lite2
	$(PY) -m clip_ood demo encoder --pooler cls
	for study in $(STUDIES); do $(PY) study.py --config $${study}_demo.yaml $(STUDY_FLAGS) || exit 1; done

data/demo/.made: $(INSTALLED) demo/images.py
	@command -v apt-get >/dev/null || { \
	  echo "make demo: there is no apt-get here, which brings the demo's images (Debian package tuxpaint-stamps-default)."; \
	  echo "All is ready for the same encoder on CIFAR10 against CIFAR100, a download of 340 MB:"; \
	  echo "$(PY) train.py --config demo_cifar.yaml"; exit 1; }
	@$(call timed,Download of the demo's images,$(PY) -m clip_ood demo images data/demo)
	touch $@

data/wordnet/.made: $(INSTALLED) demo/wordnet.py
	@$(call timed,Download of WordNet,$(PY) -m clip_ood demo wordnet data/wordnet)
	touch $@
