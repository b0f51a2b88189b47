# make lab    opens the course in JupyterLab          make test   tests the module and runs every notebook
# make test-busy   the same beside as many busy processes as there are cores (twice as long)
# make lint   style (ruff), types (mypy) and the citation (cffconvert)
# make run    runs notebooks and stores their outputs  make stamp  writes the address of the git remote into all texts
# make browser-test  opens every notebook in JupyterLab in a real browser, moves its controls and follows its links
#                    (needs Chromium)
# make book     the course as a website, in build/book       make slides   the lecture, in build/slides
# make student  notebooks without solutions, in build/student  make grade    FOLDER=... grades what students hand in
# make grade-image   builds a container to grade in, once     make grade-locked FOLDER=...  grades in it, without a network
# make claims   runs all notebooks for thirty base seeds: which claims hold, how near each comes to its bound (4 hours; goes on where it stopped)
# make colab-test      runs each notebook alone, with the versions that Colab has (10 minutes)
# make colab-versions  renews the list of those versions, tools/colab.txt
# make newest-test   every notebook with the newest versions of all packages, PyTorch too
# make outside-links  asks each address in texts and notebooks whether it is still there (needs a network)
# make release-check   says what is to be filled in before a release: names, address
# make dist     wheel and source archive, in dist             make paper    the paper as a PDF, in build (needs pandoc)
# make versions-test   the unit tests with the lowest versions that are allowed, then with the newest (15 minutes)
# make libraries-test   diagnose_model with models of diffusers, transformers, encodec, descript-audio-codec, audiocraft (5 minutes)
# make mutants  plants defects, one at a time, and counts how many the tests notice (half an hour)
# make random-mutants  400 random changes of the module: which share of them lives, file by file (hours; resumable)
# make bench  how fast the module is, beside its peers and beside the limit of the machine (forty minutes).
#             Beside faiss too once it is there: .venv/bin/python -m pip install -c constraints.txt -e ".[bench]"
# make tuning      tries options for the league of remedies (an hour or two; ARGS="--workers 16" where there are 16 cores; goes on where it stopped)
# make league      plays the season with the options chosen, on other seeds (as long; goes on where it stopped)
# make validation  retrains the models that the diagnosis is judged by (hours; goes on where it was cut off)
# make advice      follows what the diagnosis advises, and what it does not (half an hour; goes on where it stopped)
# Each target does all of its own set-up in .venv; `make setup` does nothing else.
# Without make: python -m tools

PYTHON ?= python3
ARGS ?=
CONTAINER ?= docker
PDF_ENGINE ?= xelatex
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
ready = .venv/ready

.PHONY: setup lab test test-busy lint run browser-test book slides student grade grade-image grade-locked claims \
	colab-test colab-versions versions-test newest-test outside-links release-check dist paper libraries-test mutants random-mutants bench league tuning validation advice stamp clean

# Notebook 10 in its small scale, also where there is a GPU:
run browser-test claims colab-test: export VQNOTES_SCALE ?= small

setup: $(ready)

lab: $(ready)
	.venv/bin/jupyter lab --ServerApp.root_dir=. --LabApp.extra_labextensions_path=tools/labextensions $(ARGS) notebooks/00_start_here.ipynb

test: $(ready)
	.venv/bin/python -m pytest $(ARGS)

test-busy: $(ready)
	.venv/bin/python tools/busy.py .venv/bin/python -m pytest $(ARGS)

lint: $(ready) .venv-citation/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv-citation/bin/cffconvert --validate

run: $(ready)
	.venv/bin/python tools/notebook_tools.py run $(NOTEBOOKS)

browser-test: $(ready)
	.venv/bin/python tools/browser.py $(ARGS)

book: $(ready)
	.venv/bin/python tools/book.py

slides student: $(ready)
	.venv/bin/python tools/handouts.py $@

grade: $(ready)
	.venv/bin/python tools/handouts.py grade "$(FOLDER)"

grade-image:
	$(CONTAINER) build --tag vqnotes-grading .

# Read-only, without a network and without rights: see SECURITY.md.
grade-locked:
	@test -d "$(FOLDER)" || { echo "FOLDER=... must be a folder of hand-ins, got '$(FOLDER)'"; exit 1; }
	mkdir -p build/grades
	$(CONTAINER) run --rm --network none --read-only --tmpfs /tmp:size=2g --cap-drop ALL --security-opt no-new-privileges \
	  --memory 4g --cpus 2 --pids-limit 512 --user "$$(id -u):$$(id -g)" \
	  --volume "$$(cd "$(FOLDER)" && pwd):/handed_in:ro" --volume "$(CURDIR)/build/grades:/grades" vqnotes-grading

claims: $(ready)
	.venv/bin/python -m vqnotes.course.claims --seeds 30 $(ARGS)

colab-test: $(ready)
	.venv/bin/python tools/environments.py colab

colab-versions: $(ready)
	.venv/bin/python tools/colab_versions.py $(ARGS)

newest-test: $(ready)
	.venv/bin/python tools/environments.py newest

outside-links: $(ready)
	.venv/bin/python tools/outside_links.py $(ARGS)

versions-test: $(ready)
	.venv/bin/python tools/environments.py lowest
	.venv/bin/python tools/environments.py latest

# Nothing is downloaded while it runs, and no library may be missing.
libraries-test: .venv/libraries
	HF_HUB_OFFLINE=1 VQNOTES_LIBRARIES=all .venv/bin/python -m pytest tests/test_libraries.py $(ARGS)

# The last three alone: encodec asks for torchaudio, whose wheels may want CUDA, descript-audio-codec for thirty packages,
# and audiocraft for a torch of its own.
.venv/libraries: $(ready)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[libraries]"
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --no-deps encodec descript-audio-codec audiocraft
	touch $@

mutants: $(ready)
	.venv/bin/python tools/mutants.py $(ARGS)

random-mutants: $(ready)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt cosmic-ray pytest-cov
	.venv/bin/python tools/random_mutants.py $(ARGS)

bench: $(ready)
	.venv/bin/python tools/bench.py $(ARGS)

league: $(ready)
	OMP_NUM_THREADS=1 .venv/bin/python -m vqnotes.studies.tuning --season --folder vqnotes/studies $(ARGS)

tuning: $(ready)
	OMP_NUM_THREADS=1 .venv/bin/python -m vqnotes.studies.tuning --folder vqnotes/studies $(ARGS)

validation: $(ready)
	.venv/bin/python -m vqnotes.studies.verdicts --out build/verdicts --table vqnotes/studies/verdicts.csv $(ARGS)

advice: $(ready)
	OMP_NUM_THREADS=1 .venv/bin/python -m vqnotes.studies.advice --out vqnotes/studies/advice.csv $(ARGS)

paper:
	@command -v pandoc >/dev/null || { echo "make paper needs pandoc, and a TeX or PDF_ENGINE=weasyprint"; exit 1; }
	mkdir -p build
	pandoc --citeproc --resource-path paper --pdf-engine $(PDF_ENGINE) --output build/paper.pdf paper/paper.md

release-check: $(ready)
	.venv/bin/python tools/releasing.py

# Builds what is committed, stamped or not: `git status` should be clean.
dist: .venv-dist/ready
	rm -rf dist
	.venv-dist/bin/python -m build --outdir dist
	.venv-dist/bin/python -m twine check --strict dist/*

stamp: $(ready)
	.venv/bin/python tools/stamping.py $(REPO)

# Built anew whenever the list of dependencies or the tested versions change.
$(ready): pyproject.toml constraints.txt
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[course,lab,test,lint,book,browser]"
	touch $@

# By itself: cffconvert asks for jsonschema below 4, Jupyter for one above.
.venv-citation/ready: Makefile
	rm -rf .venv-citation
	$(PYTHON) -m venv .venv-citation
	.venv-citation/bin/python -m pip install --quiet cffconvert==2.0.0
	touch $@

.venv-dist/ready: Makefile
	rm -rf .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build==1.6.1 twine==7.0.0
	touch $@

clean:
	rm -rf .venv .venv-citation .venv-dist .mypy_cache .ruff_cache build dist *.egg-info .pytest_cache
