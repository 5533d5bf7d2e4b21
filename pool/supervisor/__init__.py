"""The owner of a pool's state: commands of the scheduler out, news of processes in."""
