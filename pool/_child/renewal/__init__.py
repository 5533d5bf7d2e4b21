"""What makes a fork a fresh process: numbers of its own, and what its call changed of its surroundings."""
