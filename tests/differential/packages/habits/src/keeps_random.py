"""What should be unique for each process, made when it is imported."""

import os
import random
import secrets
import time
import uuid

import numpy

SESSION = str(uuid.uuid4())
TOKEN = secrets.token_hex(8)
SALT = os.urandom(8).hex()
PICKED = random.random()
RNG = random.Random()
GENERATOR = numpy.random.default_rng()
STATE = numpy.random.RandomState()
PID = os.getpid()
STARTED = time.time()
