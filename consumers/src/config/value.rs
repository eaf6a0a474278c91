//! What single values mean: text in, a type that cannot be invalid out. Errors say what is allowed;
//! the caller adds the key and where the value came from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// `90`, `90s`, `1500ms`, `10m`, `24h`; a bare number is seconds.
pub(crate) fn duration(text: &str, max: Duration) -> Result<Duration, String> {
    let expected = || {
        format!(
            "a duration up to {} s such as `1500ms`, `30s` or `10m`",
            max.as_secs()
        )
    };
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let unit_ms = match text[digits..].trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(expected()),
    };
    let length = number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(expected)?;
    if length <= max {
        Ok(length)
    } else {
        Err(expected())
    }
}

/// A whole number within bounds.
pub(crate) fn number(text: &str, min: u32, max: u32) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err(format!("a whole number from {min} to {max}")),
    }
}

/// `127.0.0.1:9101`, `[::1]:9101`, or a port on the loopback address.
pub(crate) fn http_listen(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        "an address and port such as `0.0.0.0:9101` or `[::]:9101`, or a port alone (on loopback; \
         `0` is a free one)"
            .to_owned()
    })
}

/// A name that fits NATS' rules for consumers and a log line.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 characters of A-Z, a-z, 0-9, _ and -".to_owned())
    }
}

/// The nearest [`name`] to any text.
pub(crate) fn to_name(text: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    text.chars().take(64).map(plain).collect()
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_a_limit() {
        let read = |text| duration(text, Duration::from_secs(3600)).ok();
        assert_eq!(read("30"), Some(Duration::from_secs(30)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(read(" 10 m "), Some(Duration::from_secs(600)));
        assert_eq!(read("1h"), Some(Duration::from_secs(3600)));
        for wrong in ["", "s", "-1", "1.5s", "2h", "1 day", "99999999999999999999"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn listening_takes_an_address_or_a_port_on_loopback() {
        let read = |text| http_listen(text).ok().map(|address| address.to_string());
        assert_eq!(read("0").as_deref(), Some("127.0.0.1:0"));
        assert_eq!(read("9101").as_deref(), Some("127.0.0.1:9101"));
        assert_eq!(read("[::]:9101").as_deref(), Some("[::]:9101"));
        for wrong in ["", "localhost:1", ":1", "70000", "1.2.3.4"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_are_plain_and_bounded() {
        assert!(name("commands-2_a").is_ok());
        for wrong in ["", "a.b", "a b", "ä", "*", &"x".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong}");
            assert!(wrong.is_empty() || is_name(&to_name(wrong)), "{wrong}");
        }
    }
}
