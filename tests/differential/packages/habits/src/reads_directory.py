"""Reads the working directory, and a file in it, when it is imported."""

import os

HERE = os.getcwd()
try:
    with open("reads_directory.ini") as file:
        SETTINGS = file.read()
except FileNotFoundError:
    SETTINGS = None
