# make install            virtual environment .venv with everything, by uv where it is found, else by pip
# make chat               the chat page on the default model    (arguments: make chat ARGS="--precision INT4")
# make lab                JupyterLab on the notebook
# make serve              an endpoint for other programs, at http://127.0.0.1:8000/v1
# make cluster            the same on many machines, with Ray Serve
# make doctor             what this machine has, and which model suits it; needs nothing installed
# make test, test-all     the quick tests with the notebook's run; all tests
# make bench, bench-peers the measurements of benchmarks/; the same beside other programs
# make bench-check       whether start or decoding have become slower
# make notebook           run the notebooks from top to bottom and save their outputs

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
UV := $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.PHONY: install chat serve cluster doctor lab bench bench-check bench-peers test test-all notebook clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(if $(UV),test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
	$(INSTALL) -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

.venv/installed-cluster: .venv/installed requirements-cluster.txt
	$(INSTALL) -r requirements-cluster.txt -c constraints.txt
	@touch $@

chat: install
	$(BIN)/python chat_ui.py $(ARGS)

serve: install
	$(BIN)/python -m serving.api $(ARGS)

cluster: .venv/installed-cluster
	$(BIN)/python -m serving.cluster $(ARGS)

# In the environment where there is one: it says what is missing there.
doctor:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) doctor.py $(ARGS)

lab: install
	$(BIN)/jupyter lab llm_chatbot.ipynb

bench: install
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.conversation
	$(BIN)/python -m benchmarks.engine_process
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.settings
	$(BIN)/python -m benchmarks.mpt_decoding

# What is slower than what was committed, by more than the spread of both runs.
bench-check: install
	rm -f .bench-start.json .bench-decoding.json
	$(BIN)/python -m benchmarks.start --save .bench-start.json
	$(BIN)/python -m benchmarks.decoding --only ChatModel "infer request alone" --no-long-prompt --save .bench-decoding.json
	$(BIN)/python -m benchmarks.check benchmarks/start.json .bench-start.json
	$(BIN)/python -m benchmarks.check benchmarks/decoding.json .bench-decoding.json

# The same beside PyTorch, OpenVINO GenAI and llama.cpp, which is built in an environment of its own (10 minutes).
bench-peers: install .venv-peers/installed
	$(BIN)/python -m benchmarks.gguf fetch .venv-peers/gguf
	.venv-peers/bin/python -m benchmarks.gguf requantize .venv-peers/gguf
	$(BIN)/python -m benchmarks.decoding --peers .venv-peers/bin/python --gguf Q8_0=.venv-peers/gguf/Q8_0.gguf Q4_1=.venv-peers/gguf/Q4_1.gguf

# Not built for exactly this processor, which crashes on some virtual machines. Without AVX-512: make bench-peers
# LLAMA_CPP_FLAGS="-DGGML_NATIVE=OFF"
LLAMA_CPP_FLAGS ?= -DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF
.venv-peers/installed:
	$(PYTHON) -m venv .venv-peers
	CMAKE_ARGS="$(LLAMA_CPP_FLAGS)" .venv-peers/bin/python -m pip install --quiet --no-binary llama-cpp-python "llama-cpp-python[server]==0.3.36"
	@touch $@

# Two at a time, the longest first: most of the suite is single-threaded.
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20 $(ARGS)

test: install
	$(PYTEST) -m "not slow"

test-all: .venv/installed-cluster test
	$(PYTEST) -m slow

notebook: install
	$(BIN)/python run_notebook.py

clean:
	rm -rf .venv .venv-peers models
