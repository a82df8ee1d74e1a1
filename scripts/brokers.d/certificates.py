"""An authority of our own, with a certificate for the servers and one for clients."""

import shutil

import install

DAYS = "3650"
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost"


class Certificates:
    """PEM files in one directory: ca, server, server-key, client, client-key; and stranger, an
    authority that has signed nothing."""

    def __init__(self, settings):
        self.settings = settings
        self.directory = settings.directory / "tls"

    def __getitem__(self, name):
        return self.directory / f"{name}.pem"

    def make(self):
        """Makes them once for all components."""
        if not shutil.which("openssl"):
            install.packages(self.settings, ["openssl"])
        with install.once(self.directory / "made") as todo:
            if todo:
                self.authority("ca")
                self.authority("stranger")
                self.signed("server")
                self.signed("client")

    def authority(self, name):
        self.openssl("req", "-x509", *NEW_KEY, "-days", DAYS, "-subj", f"/CN=event-gateway tests {name}",
                     "-keyout", self[f"{name}-key"], "-out", self[name])

    def signed(self, name):
        request = self.directory / f"{name}.csr"
        self.openssl("req", *NEW_KEY, "-subj", f"/CN={name}", "-addext", NAMES,
                     "-keyout", self[f"{name}-key"], "-out", request)
        self.openssl("x509", "-req", "-in", request, "-CA", self["ca"], "-CAkey", self["ca-key"], "-CAcreateserial",
                     "-days", DAYS, "-copy_extensions", "copy", "-out", self[name])

    def openssl(self, *arguments):
        install.run(["openssl", *arguments], self.settings.logs / "openssl.log", "make certificates")
