"""The launchers: local, torchrun, deepspeed and slurm."""
