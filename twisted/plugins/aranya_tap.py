"""``twistd aranya``."""

from twisted.application.service import ServiceMaker

aranya = ServiceMaker("aranya", "aranya.tap", "The controller: reach edge devices with kubectl.", "aranya")
