"""Ends TLS in front of an address, as the proxies do that registries stand behind. Prints its port.

usage: tls.py CERTIFICATE KEY HOST:PORT
"""
import asyncio
import ssl
import sys


async def pour(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # Whoever has hung up wants no more.
    finally:
        writer.close()


async def main(certificate, key, target):
    host, port = target.rsplit(":", 1)

    async def serve(reader, writer):
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pour(reader, back), pour(there, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
