"""Where processes run: local, torchrun, deepspeed and slurm behind one interface.

job.py      the interface: a job, and what its launcher reports
backends    one file a launcher; the batch scripts and the queue of Slurm
processes   supervision: heartbeats, stalls, lost peers, restarts
preloading  ranks as forks of a process that has imported torch
agent.py    the process of each node of a Slurm job, which supervises its ranks
"""
