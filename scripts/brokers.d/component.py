"""What every broker here has in common."""

from concurrent.futures import ThreadPoolExecutor

from processes import Process


def at_once(function, items):
    """Calls `function` on all items in threads; the first failure is raised after all have ended."""
    items = list(items)
    with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
        futures = [pool.submit(function, item) for item in items]
    return [future.result() for future in futures]


class Component:
    """A broker: its nodes by name. Subclasses say how to install, launch and judge them."""

    name = ""
    nodes = ()
    start_limit_s = 120

    def __init__(self, settings):
        self.settings = settings
        self.directory = settings.data / self.name
        self.processes = {node: Process(node, settings) for node in self.nodes}

    def install(self):
        """Brings the programs; quick when they are there."""

    def version(self):
        """What is installed: a number, or whose choice it is."""
        return self.settings[f"{self.name.upper()}_VERSION"]

    def launch(self, node):
        """Starts one node's process."""
        raise NotImplementedError

    def healthy(self, node):
        """Does this node serve?"""
        raise NotImplementedError

    def port(self, node):
        raise NotImplementedError

    def complete(self):
        """Waits until the nodes are a whole; the nodes are healthy already."""

    def up(self):
        """The nodes that had to be started."""
        self.install()
        self.directory.mkdir(parents=True, exist_ok=True)
        missing = [node for node in self.nodes if self.processes[node].pid() is None]
        self.launch_all(missing)
        at_once(self.wait, self.nodes)
        self.complete()
        return missing

    def launch_all(self, nodes):
        at_once(self.launch, nodes)

    def start(self, node):
        if self.processes[node].pid() is None:
            self.launch(node)
        self.wait(node)

    def wait(self, node):
        self.processes[node].wait_until(lambda: self.healthy(node), self.start_limit_s)

    def stop(self):
        at_once(lambda node: self.processes[node].stop(), self.nodes)

    def data_directories(self):
        """What `down --wipe` removes."""
        return [self.directory]

    def number(self, node):
        return int(node[-1])

    def index(self, node):
        return self.number(node) - 1
