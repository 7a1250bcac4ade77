"""One X screen: its pixels, its windows, its keyboard and its mouse."""

from __future__ import annotations

import difflib
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from Xlib import X, XK, display, error
from Xlib.ext import xtest

from processes import DesktopError

# Longest text of one `type`, and how many different characters of it may be missing on the keyboard.
TEXT_CHARS = 2000
RARE_CHARS = 60
# Longest name of a key with its modifiers.
KEY_CHARS = 64
# Clicks in one call.
CLICKS = 3
# Pause between them: Chromium takes two in the same millisecond for one.
BETWEEN_CLICKS_MS = 30
# Windows that are listed, and the part of each title that is told.
WINDOWS = 100
TITLE_CHARS = 300
# The compression of screenshots: pages are mostly flat, and more costs time and saves little.
PNG_LEVEL = 3

# Multimedia keys have keysyms that begin so. The keys below are not used for other characters: Chromium acts on their
# place on the keyboard, whatever character they have.
MULTIMEDIA = 0x1008
XK.load_keysym_group("xf86")
ACTED_ON = {getattr(XK, f"XK_XF86_{name}") for name in (
    "Back", "Copy", "Cut", "Favorites", "Forward", "HomePage", "Open", "Paste", "Refresh", "Reload", "Search", "Stop")}

Button = Literal["left", "middle", "right"]
BUTTONS: dict[Button, int] = {"left": 1, "middle": 2, "right": 3}
MODIFIERS = {"ctrl": "Control_L", "control": "Control_L", "shift": "Shift_L", "alt": "Alt_L", "super": "Super_L"}
# Names that people use, beside X's own.
KEYS = {"enter": "Return", "return": "Return", "esc": "Escape", "escape": "Escape", "tab": "Tab", "space": "space",
        "backspace": "BackSpace", "delete": "Delete", "insert": "Insert", "home": "Home", "end": "End",
        "pageup": "Prior", "pagedown": "Next", "up": "Up", "down": "Down", "left": "Left", "right": "Right",
        **{f"f{n}": f"F{n}" for n in range(1, 13)}}


@dataclass
class Window:
    title: str
    x: int
    y: int
    width: int
    height: int


def png(width: int, height: int, rgb: bytes) -> bytes:
    """Pixels as a PNG."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + rgb[start:start + 3 * width] for start in range(0, len(rgb), 3 * width))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, PNG_LEVEL))
            + chunk(b"IEND", b""))


def keysym_of(char: str) -> int:
    code = ord(char)
    return code if 0x20 <= code <= 0x7E or 0xA0 <= code <= 0xFF else 0x01000000 + code


class Screen:
    """Not for several threads at once."""

    def __init__(self, name: str) -> None:
        self.keyboard_changed: Callable[[], None] = lambda: None  # called when it has, before a new key is struck
        self.display = display.Display(name)
        self.root = self.display.screen().root
        self.width = self.display.screen().width_in_pixels
        self.height = self.display.screen().height_in_pixels
        self._read_keyboard()

    # Pixels and windows

    def rgb(self) -> bytes:
        """The pixels, row by row, three bytes each."""
        seen = self.root.get_image(0, 0, self.width, self.height, X.ZPixmap, 0xFFFFFFFF).data
        rgb = bytearray(3 * self.width * self.height)
        for channel in range(3):  # a pixel is blue, green, red, nothing
            rgb[channel::3] = seen[2 - channel::4]
        return bytes(rgb)

    def screenshot(self) -> bytes:
        return png(self.width, self.height, self.rgb())

    def windows(self) -> list[Window]:
        """The windows that the window manager knows, oldest first."""
        listed = self.root.get_full_property(self.display.get_atom("_NET_CLIENT_LIST"), X.AnyPropertyType)
        found = []
        for number in (listed.value if listed else [])[:WINDOWS]:
            window = self.display.create_resource_object("window", number)
            try:
                size = window.get_geometry()
                place = window.translate_coords(self.root, 0, 0)
                found.append(Window(self._title(window), -place.x, -place.y, size.width, size.height))
            except error.XError:
                continue  # it was closed meanwhile
        return found

    def _title(self, window: Any) -> str:
        for name in ("_NET_WM_NAME", "WM_NAME"):
            text = window.get_full_property(self.display.get_atom(name), X.AnyPropertyType)
            if text:
                value = text.value.encode("latin1") if isinstance(text.value, str) else bytes(text.value)
                return value.decode("utf-8", "replace")[:TITLE_CHARS]
        return ""

    # Input

    def click(self, x: int, y: int, button: Button, count: int) -> None:
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise DesktopError(f"({x}, {y}) is off the screen: x must be 0 to {self.width - 1}, y 0 to {self.height - 1}")
        if not 1 <= count <= CLICKS:
            raise DesktopError(f"count is {count}: it must be 1 to {CLICKS}")
        xtest.fake_input(self.display, X.MotionNotify, x=x, y=y)
        for click in range(count):
            xtest.fake_input(self.display, X.ButtonPress, BUTTONS[button], time=BETWEEN_CLICKS_MS if click else 0)
            xtest.fake_input(self.display, X.ButtonRelease, BUTTONS[button])
        self.display.sync()

    def type(self, text: str) -> None:
        if len(text) > TEXT_CHARS:
            raise DesktopError(f"the text has {len(text)} characters: the limit is {TEXT_CHARS}, so send it in parts")
        keysyms = []
        for char in text.replace("\r\n", "\n"):
            if char in "\n\t":
                keysyms.append(XK.XK_Return if char == "\n" else XK.XK_Tab)
            elif char.isprintable():
                keysyms.append(keysym_of(char))
            else:
                raise DesktopError(f"U+{ord(char):04X} cannot be typed: only printable characters, line ends and "
                                   "tabs; use `press` for keys")
        rare = set(keysyms) - self.keyboard.keys()
        room = min(RARE_CHARS, len(self.spare))
        if len(rare) > room:
            raise DesktopError(f"the text has {len(rare)} different characters that are not on the keyboard: "
                               f"the limit is {room}, so send it in parts")
        self._add_keys(rare)
        for keysym in keysyms:
            self._strike(keysym, [])
        self.display.sync()

    def press(self, key: str) -> None:
        if len(key) > KEY_CHARS:
            raise DesktopError(f"the key's name has {len(key)} characters: the limit is {KEY_CHARS}")
        *modifiers, name = (key[:-1] + "plus" if key.endswith("+") else key).split("+")
        held = []
        for modifier in modifiers:
            if modifier.lower() not in MODIFIERS:
                raise DesktopError(f"there is no modifier {modifier!r}: use {', '.join(MODIFIERS)}, as in ctrl+shift+t")
            held.append(XK.string_to_keysym(MODIFIERS[modifier.lower()]))
        keysym = keysym_of(name) if len(name) == 1 and name.isprintable() else self._named(name)
        self._add_keys({keysym} - self.keyboard.keys())
        self._strike(keysym, held)
        self.display.sync()

    def _named(self, name: str) -> int:
        keysym = XK.string_to_keysym(KEYS.get(name.lower()) or MODIFIERS.get(name.lower()) or name)
        if keysym == X.NoSymbol:
            near = difflib.get_close_matches(name.lower(), [*KEYS, *MODIFIERS], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"use a character or one of {', '.join(KEYS)}"
            raise DesktopError(f"there is no key {name!r}: {hint}")
        return keysym

    # The keyboard is a US one. A character beyond it is put on a key that has none, or one of the multimedia keys, about
    # a hundred in all: the one whose character was not needed for longest. A client reads the changed keyboard when it
    # comes to the event that says so; X cannot tell when that was, hence `keyboard_changed`.

    def _read_keyboard(self) -> None:
        first, last = self.display.display.info.min_keycode, self.display.display.info.max_keycode
        self.keyboard: dict[int, tuple[int, bool]] = {}  # keysym: keycode, with shift
        unused = []
        for keycode, symbols in enumerate(self.display.get_keyboard_mapping(first, last - first + 1), first):
            if all(symbol == 0 or symbol >> 16 == MULTIMEDIA for symbol in symbols) and not ACTED_ON & set(symbols):
                unused.append(keycode)
            for shift in (False, True):
                if len(symbols) > shift and symbols[shift]:
                    self.keyboard.setdefault(symbols[shift], (keycode, shift))
        self.spare: dict[int, int] = {-keycode: keycode for keycode in unused}  # keysym (none yet): keycode, oldest first

    def _add_keys(self, keysyms: set[int]) -> None:
        """Puts these characters, no more than there are spare keys, on keys."""
        for keysym in keysyms & self.spare.keys():
            self.spare[keysym] = self.spare.pop(keysym)
        new = sorted(keysyms - self.spare.keys())
        for keysym in new:
            keycode = self.spare.pop(next(iter(self.spare)))
            self.display.change_keyboard_mapping(keycode, [(keysym, keysym)])
            self.spare[keysym] = keycode
        if new:
            self.display.sync()
            self.keyboard_changed()

    def _strike(self, keysym: int, held: list[int]) -> None:
        keycode, shift = self.keyboard.get(keysym) or (self.spare[keysym], False)
        keycodes = [self.keyboard[modifier][0] for modifier in held]
        if shift:
            keycodes.append(self.keyboard[XK.XK_Shift_L][0])
        keycodes.append(keycode)
        for one in keycodes:
            xtest.fake_input(self.display, X.KeyPress, one)
        for one in reversed(keycodes):
            xtest.fake_input(self.display, X.KeyRelease, one)


T = TypeVar("T")


def wait_until(what: str, probe: Callable[[], T], limit_s: float) -> T:
    """Asks `probe` until it gives something; DesktopError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise DesktopError(f"{what}: not seen within {limit_s:g} s. The machine may be overloaded: see the log")
        time.sleep(0.02)
    return found
