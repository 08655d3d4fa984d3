"""Runs: the four stages (`run`), the directory where a run keeps its files (`directory`), which of its settings may
change (`changes`), runs of pretrained models (`importing`), and the report."""
