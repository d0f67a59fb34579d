"""Transfer: finetunes and evaluates students on downstream tasks.

tasks       one file a task: copy one to add another (docs/tasks.md)
readers     original annotation files -> examples
heads       what a task puts on a student
metrics     scores as the official scripts compute them
finetuning  training a task, and its predictions
evaluation  scores without a task's head: retrieval, phrase grounding
probes      attention and dictionary of a student, for the report
toy_tasks   files of every task, made from a run's own pictures
inference.py   a student as functions: match, search, answer, judge, point
"""
