"""Where processes run: local, torchrun, deepspeed and slurm behind one interface."""
