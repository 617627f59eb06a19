# make install   virtual environment .venv with everything
# make chat      the chat page on the default model      (arguments: make chat ARGS="--precision INT4")
# make lab       JupyterLab on the notebook
# make bench     the measurements of benchmarks/
# make test      the whole test suite, notebook run included

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: install chat lab bench test notebook clean

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

chat: install
	$(BIN)/python chat_ui.py $(ARGS)

lab: install
	$(BIN)/jupyter lab llm_chatbot.ipynb

bench: install
	$(BIN)/python -m benchmarks.mpt_decoding

test: install
	$(BIN)/python -m pytest $(ARGS)

notebook: install  # run it from top to bottom and save the outputs
	$(BIN)/python run_notebook.py

clean:
	rm -rf .venv models
