//! What single values mean: text in, a type that cannot be invalid out. Errors say what is allowed;
//! the caller adds the key and where the value came from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use schemas::Prefix;
use url::Url;

/// Transport compression of the gateway connection (Discord, Gateway, Encoding and Compression).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `compress=zstd-stream`.
    Zstd,
    /// `compress=zlib-stream`.
    Zlib,
    /// Plain text frames.
    None,
}

impl Compression {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "zstd" | "zstd-stream" => Ok(Self::Zstd),
            "zlib" | "zlib-stream" => Ok(Self::Zlib),
            "none" => Ok(Self::None),
            _ => Err("zstd, zlib or none".to_owned()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Zlib => "zlib",
            Self::None => "none",
        })
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

impl LogFormat {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json".to_owned()),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// The first token of every subject.
pub(crate) fn prefix(text: &str) -> Result<Prefix, String> {
    // The error of the type names the value, which the message around it does already.
    text.parse()
        .map_err(|_| "1 to 32 characters of A-Z, a-z, 0-9, `_` and `-`".to_owned())
}

/// `90`, `90s`, `1500ms`, `10m`, `24h`, `7d`; a bare number is seconds.
pub(crate) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let expected = || {
        let (min, max) = (DurationText(min), DurationText(max));
        format!("a duration from {min} to {max} such as `1500ms`, `30s`, `10m` or `24h`")
    };
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let unit_ms = match text[digits..].trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    let length = number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(expected)?;
    if (min..=max).contains(&length) {
        Ok(length)
    } else {
        Err(expected())
    }
}

/// Writes a duration the way [`duration`] reads it, in the largest unit that divides it.
pub(crate) struct DurationText(pub(crate) Duration);

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1_000, "s"),
        ];
        match units
            .into_iter()
            .find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", ms / unit),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// `4096`, `64MiB`, `10GB`; decimal and binary units.
pub(crate) fn size(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let expected = || {
        let (min, max) = (SizeText(min), SizeText(max));
        format!("a size from {min} to {max} such as `67108864`, `64MiB` or `10GB`")
    };
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(expected()),
    };
    let bytes = number.checked_mul(unit).ok_or_else(expected)?;
    if (min..=max).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(expected())
    }
}

/// Writes a size the way [`size`] reads it.
pub(crate) struct SizeText(pub(crate) u64);

impl fmt::Display for SizeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (1_u64 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        match units
            .into_iter()
            .find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit))
        {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A whole number within bounds.
pub(crate) fn number<N>(text: &str, min: N, max: N) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + fmt::Display,
{
    match text.trim().parse::<N>() {
        Ok(number) if number >= min && number <= max => Ok(number),
        Ok(_) | Err(_) => Err(format!("a whole number from {min} to {max}")),
    }
}

/// `20` or `20%`.
pub(crate) fn percent(text: &str, max: u8) -> Result<u8, String> {
    let bare = text.trim().trim_end_matches('%');
    number(bare, 0, max).map_err(|_| format!("a percentage from 0 to {max} such as `20`"))
}

/// `on` or `off`, and the spellings of a TOML boolean.
pub(crate) fn on_off(text: &str) -> Result<bool, String> {
    super::raw::boolean(text).ok_or_else(|| "on or off".to_owned())
}

/// `127.0.0.1:9100`, `[::1]:9100`, or a port on the loopback address.
pub(crate) fn http_listen(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        "an address and port such as `0.0.0.0:9100` or `[::]:9100`, or a port alone (on loopback; `0` is a free one)".to_owned()
    })
}

/// An HTTP base address without query and fragment; a trailing `/` is dropped.
pub(crate) fn http_url(text: &str) -> Result<Url, String> {
    let expected = |why: &str| format!("an http or https URL{why}");
    let mut url = Url::parse(text.trim()).map_err(|error| expected(&format!(" ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(expected(""));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(expected(" without user and password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(expected(" without query and fragment"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// Whether a URL stays on this machine, where plain `http` gives nothing away.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// A failure zone's name, as it stands in KV values and labels.
pub(crate) fn zone(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 characters of A-Z, a-z, 0-9, `_`, `.` and `-`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::Shown as _;
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn check_duration(text: &str, expect: Option<u64>) {
        let got = duration(text, Duration::from_millis(1), DAY).ok();
        assert_eq!(got, expect.map(Duration::from_millis), "{text:?}");
    }

    #[test]
    fn durations_take_units_and_a_bare_number_is_seconds() {
        check_duration("90", Some(90_000));
        check_duration("90s", Some(90_000));
        check_duration("1500ms", Some(1_500));
        check_duration(" 10 m ", Some(600_000));
        check_duration("24h", Some(86_400_000));
        check_duration("1d", Some(86_400_000));
        for bad in [
            "",
            "s",
            "-1s",
            "1.5s",
            "10x",
            "0s",
            "25h",
            "99999999999999999999s",
        ] {
            check_duration(bad, None);
        }
    }

    #[test]
    fn a_duration_is_written_the_way_it_is_read() {
        for text in ["1500ms", "30s", "10m", "24h", "7d", "90s"] {
            let read = duration(text, Duration::ZERO, 30 * DAY).unwrap();
            let written = DurationText(read).to_string();
            assert_eq!(
                duration(&written, Duration::ZERO, 30 * DAY).unwrap(),
                read,
                "{text}"
            );
        }
        assert_eq!(DurationText(Duration::ZERO).to_string(), "0ms");
    }

    #[test]
    fn sizes_take_decimal_and_binary_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("10 GB", 10_000_000_000),
        ] {
            assert_eq!(size(text, 1, u64::MAX), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "1.5GB", "-1", "5 parsecs", "999999999999TiB"] {
            assert!(size(bad, 0, u64::MAX).is_err(), "{bad}");
        }
        assert_eq!(SizeText(64 << 20).to_string(), "64MiB");
        assert_eq!(SizeText(1000).to_string(), "1000");
    }

    #[test]
    fn a_bare_port_listens_on_loopback() {
        assert_eq!(http_listen("0").unwrap().to_string(), "127.0.0.1:0");
        assert_eq!(http_listen("0.0.0.0:80").unwrap().to_string(), "0.0.0.0:80");
        assert_eq!(http_listen("[::1]:80").unwrap().to_string(), "[::1]:80");
        for bad in ["", "localhost", "host:80", "127.0.0.1", "70000", ":80"] {
            assert!(http_listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_lose_their_trailing_slash_and_must_be_plain_http() {
        let url = http_url("https://discord.com/api/v10/").unwrap();
        assert_eq!(url.shown().as_str(), Some("https://discord.com/api/v10"));
        for bad in [
            "discord.com",
            "ftp://x/",
            "https://u:p@x/",
            "https://x/?q",
            "http://",
        ] {
            assert!(http_url(bad).is_err(), "{bad}");
        }
        assert!(is_loopback(&http_url("http://127.0.0.1:1/").unwrap()));
        assert!(is_loopback(&http_url("http://[::1]:1/").unwrap()));
        assert!(!is_loopback(&http_url("http://simulator:1/").unwrap()));
    }

    #[test]
    fn percentages_may_carry_their_sign() {
        assert_eq!(percent("20%", 90), Ok(20));
        assert_eq!(percent("0", 90), Ok(0));
        assert!(percent("91", 90).is_err());
        assert!(percent("", 90).is_err());
    }
}
