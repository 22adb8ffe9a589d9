"""Where graphs run: the file name is the provider's name.

Each file has `FULL_NAME`, what else it is called; `ON_PROCESSOR`, whether it computes there; `missing()`, why it cannot
be used here, None where it can; and `make(model, name, threads, session_options)`, which loads a graph. A bundle is the
same for all of them.
"""
