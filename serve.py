"""`python serve.py` in a checkout is `functionary-vllm serve` where the package is installed; `--help` lists flags."""

import runpy

# Under this file's own name: in an API worker, or a child process of vLLM, that is `__mp_main__`.
runpy.run_module("functionary_vllm.serving.program", run_name=__name__)
