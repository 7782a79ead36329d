"""llama.cpp's HTTP server with a model, on a free port: prints its URL and serves until standard input ends.

    python serve.py tiny.gguf
"""

import sys

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.model_alias = {"tiny"}
parameters.n_ctx = 2048
parameters.n_parallel = 4
parameters.port = 0
parameters.hostnames = ["127.0.0.1"]
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
