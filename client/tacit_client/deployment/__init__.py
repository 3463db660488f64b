"""A site on a machine of its own.

site_folder, site_config, node_key, site_data    what stands in its folder
init_command, site_init                          making it
agent                                            the process: connect, receive, answer
open_site, signed_app, correspondence            answering: verified, witnessed, signed
journal, journal_view                            the account of every request
doctor*, findings, inspection, stored_shapes     what an operator asks of it
"""

__all__: list[str] = []
