"""The servers that are measured beside ours; each file is what its own users would write for this model.

Each runs in an environment of its own, named after its file in `requirements/`:

    for file in benchmarks/serving/peers/requirements/*.txt; do
        name=$(basename $file .txt); python3 -m venv .venv-peers/$name && .venv-peers/$name/bin/pip install -r $file
    done
"""
