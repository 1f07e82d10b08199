"""A process that does nothing until its input ends, in words that every Python 3 understands."""
import sys

print("ready", flush=True)
sys.stdin.read()
