"""A URL over curl with the hellos of browsers: prints a line for each, errors too.

With a list of ECH configurations and a host, the browsers that know ECH encrypt
the URL's name to that key and connect to that host.
"""
import socket, sys

from curl_cffi import CurlOpt, requests

url, browsers, options = sys.argv[1], ["chrome", "edge", "safari", "firefox", "tor145"], {}
if len(sys.argv) > 2:
    keys, host = sys.argv[2:]
    browsers = ["chrome", "firefox", "tor145"]
    options = {CurlOpt.ECH: "ecl:" + keys, CurlOpt.RESOLVE: [url.split("/")[2] + ":443:" + socket.gethostbyname(host)]}
for browser in browsers:
    try:
        with requests.Session(impersonate=browser, timeout=30, curl_options=options) as s:
            r = s.get(url)
            print(browser, r.status_code, r.http_version, r.text, flush=True)
    except Exception as e:
        print(browser, "error", " ".join(str(e).split()), flush=True)
