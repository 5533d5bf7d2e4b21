"""Files of environments on a volume that pods share: names, marks of use, claims, eviction."""
