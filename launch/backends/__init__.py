"""The launchers behind one interface: local, torchrun, deepspeed and slurm, a module each."""
