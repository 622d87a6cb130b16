"""A stand-in for a vLLM server: the simulator's replica in real time, behind vLLM's API."""
