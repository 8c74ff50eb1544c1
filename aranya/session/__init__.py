"""The corridor: joins a kubectl client's streams to a channel of a device. Imports interfaces only."""
