"""``twistd arhat``."""

from twisted.application.service import ServiceMaker

arhat = ServiceMaker("arhat", "arhat.tap", "The agent: lets kubectl reach this device.", "arhat")
