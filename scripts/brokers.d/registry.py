"""Apicurio Registry from Maven, spoken to in Confluent's API. Its schemas are in a file, so that
ids survive a restart."""

import tarfile

import install
from component import Component
from processes import http_get


class Registry(Component):
    name = "registry"
    nodes = ("registry",)

    def __init__(self, settings):
        super().__init__(settings)
        self.programs = settings.cache / f"registry-{self.version()}"

    def install(self):
        install.java(self.settings)
        with install.once(self.settings.cache / f"{self.programs.name}.done") as todo:
            if todo:
                install.maven(self.settings)
                self.programs.mkdir(exist_ok=True)
                artifact = f"io.apicurio:apicurio-registry-app:{self.version()}:tar.gz:all"
                command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", "-DoutputDirectory=."]
                install.run(command, self.settings.logs / "registry-fetch.log", "fetch the registry with Maven",
                            cwd=self.programs)
                archive = self.programs / f"apicurio-registry-app-{self.version()}-all.tar.gz"
                with tarfile.open(archive) as content:
                    content.extractall(self.programs)
                archive.unlink()

    def launch(self, node):
        properties = [f"-D{key}={value}" for key, value in self.own_settings(node).items()]
        command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *properties,
                   "-jar", self.programs / f"apicurio-registry-app-{self.version()}-runner.jar"]
        self.processes[node].launch(command, cwd=self.directory)

    def own_settings(self, node):
        """Quarkus' properties."""
        return {"quarkus.http.port": self.port(node), "quarkus.http.host": "127.0.0.1",
                "quarkus.datasource.jdbc.url": f"jdbc:h2:file:{self.directory / 'schemas'};WRITE_DELAY=0"}

    def url(self):
        return f"http://127.0.0.1:{self.port('registry')}{self.settings['REGISTRY_PATH']}"

    def port(self, node):
        return self.settings.port("REGISTRY_PORT")

    def healthy(self, node):
        return http_get(f"{self.url()}/subjects") is not None
