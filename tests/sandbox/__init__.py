"""Stand-ins for providers' own hosts, written from the providers' documentation.

They keep state, check what they are sent as strictly as the originals do, and can be told to
fail. `python -m tests.sandbox --help` starts them; `tests.sandbox.running` starts them in a test.
"""
