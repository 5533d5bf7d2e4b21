"""From a spec to a lease: finds an environment, or builds it when its turn comes."""
