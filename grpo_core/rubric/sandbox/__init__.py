"""Child processes for graders that could hang, crash the server or run other people's code.

Each is a grpo_core.child_process.Child: a time limit for each request, killed when it exceeds it.

- worker.py: mathematics and JSON Schema. They are trusted code, but some inputs take forever.
- snippet.py, snippet_child.py: Python typed into the page, in an interpreter without access to the
  machine; only numbers come back.
- plugins.py, plugin_child.py, jail.py, syscalls.py: Python files of the operator, unrestricted but
  locked up.
"""
