"""What is learned, one file per kind: contract.py says what a task is, table.py names them.

To add a task: its file, its line in names.py (what a config may say of it) and in table.py.
Nothing else knows a task by name.
"""
