"""The owner of a pool's state: carries out the scheduler's commands, handles process events."""
