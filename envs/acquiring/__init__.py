"""From a spec to a lease: find an environment, or build it when its turn comes."""
