# make install   virtual environment .venv with everything
# make chat      the chat page on the default model      (arguments: make chat ARGS="--precision INT4")
# make serve     the default model for other programs, at http://127.0.0.1:8000/v1
# make doctor    what this machine has, and which model suits it; needs nothing installed
# make lab       JupyterLab on the notebook
# make bench     the measurements of benchmarks/; make bench-peers: beside other programs
# make test      the whole test suite, notebook run included

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: install chat serve doctor lab bench bench-peers test notebook clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

chat: install
	$(BIN)/python chat_ui.py $(ARGS)

serve: install
	$(BIN)/python -m serving.api $(ARGS)

# In the environment where there is one: it says what is missing there.
doctor:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) doctor.py $(ARGS)

lab: install
	$(BIN)/jupyter lab llm_chatbot.ipynb

bench: install
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.conversation
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.settings
	$(BIN)/python -m benchmarks.mpt_decoding

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
	CMAKE_ARGS="$(LLAMA_CPP_FLAGS)" .venv-peers/bin/python -m pip install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

# Two at a time, the longest first: most of the suite is single-threaded.
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

notebook: install  # run it from top to bottom and save the outputs
	$(BIN)/python run_notebook.py

clean:
	rm -rf .venv .venv-peers models
